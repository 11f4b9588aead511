/* Search in pages that are opened as files: a browser starts no worker from a file, so its script runs in a hidden frame. */
if (location.protocol === "file:") {
  class FrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = this.onerror = null
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const scope = frame.contentWindow
      const load = source => new Promise((done, failed) => {
        const script = frame.contentDocument.createElement("script")
        script.src = new URL(source, document.baseURI)
        script.onload = done
        script.onerror = failed
        frame.contentDocument.body.append(script)
      })
      const send = (target, data) => target.dispatchEvent(new MessageEvent("message", { data }))
      scope.importScripts = (...sources) => sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
      scope.postMessage = data => send(this, data)
      this.addEventListener("message", event => this.onmessage?.(event))
      this.postMessage = data => ready.then(() => send(scope, data))
      const ready = load(url)
    }
    terminate() {}
  }
  window.IFrameWorker = window.Worker = FrameWorker
}
