"""Where the links in a tar lead: where they would in a folder that it is unpacked into."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping

_MOST_LINKS = 40
"""On one way, as Linux has it: more go in circles."""


def followed(path: str, links: Mapping[str, str]) -> str | None:
    """Follows the links on the way to a member; None if that leaves the tar or goes in circles.

    Args:
        path: normalised, with slashes.
        links: what symbolic links say, by their own paths.
    """
    done: list[str] = []
    ahead = deque(path.split("/"))
    left = _MOST_LINKS
    while ahead:
        part = ahead.popleft()
        if part == "..":
            if not done:
                return None
            done.pop()
        elif part not in ("", "."):
            done.append(part)
            target = links.get("/".join(done))
            if target is not None:
                done.pop()
                left -= 1
                if left < 0 or target.startswith("/"):
                    return None
                ahead.extendleft(reversed(target.split("/")))
    return "/".join(done)


def folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """What lies in each folder, by the paths of files and links; the top is called ""."""
    inner: defaultdict[str, list[str]] = defaultdict(list)
    known = set()
    for path in paths:
        while path and path not in known:
            known.add(path)
            parent = path.rpartition("/")[0]
            inner[parent].append(path)
            path = parent
    return dict(inner)


def through_folders(
    tree: Mapping[str, list[str]], links: Mapping[str, str], left_out: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Gives what links to folders lead to: the path through the link, and that of the member or of a further link.

    As in a folder, a link is followed unless it leads back to where we came from; those are counted in `left_out`.
    """
    ahead = deque((link, link, _above(link)) for link in links if followed(link, links) in tree)
    while ahead:
        shown, path, trail = ahead.popleft()
        real = followed(path, links) if path in links else path
        if real is None or real not in tree:
            yield shown, path
        elif real in trail:
            left_out["links that lead back to a folder above them"] += 1
        else:
            ahead.extend((f"{shown}/{child.rpartition('/')[2]}", child, trail | {real}) for child in tree[real])


def _above(path: str) -> frozenset[str]:
    """The folders that a path lies in."""
    parts = path.split("/")
    return frozenset("/".join(parts[:count]) for count in range(len(parts)))
