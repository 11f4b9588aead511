"""What the hub's folders hold beside a model's weights: the same in other forms, and a card that tells of them."""

OTHER_FORMATS = (
    "README.md", "flax_model.msgpack", "model-q4.gguf", "model.onnx", "model.onnx_data", "onnx/model.onnx",
    "openvino_model.xml", "original/consolidated.00.pth", "original/params.json", "rust_model.ot", "tf_model.h5",
    "weights.some-new-format",
)  # fmt: skip
