"""Read YAML whose mappings have each key once, as YAML itself demands and PyYAML does not check."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError

_MERGE = "tag:yaml.org,2002:merge"


class UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses a mapping with a key twice, of which PyYAML would keep the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - a name or None
        """Compose a mapping of the text, once, before merge keys add those of other mappings.

        Raises:
            ConstructorError: a key occurs twice.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:  # several merge keys are merged
                continue
            line = key.start_mark.line + 1
            if key.value in lines:  # by its text, because 1 and "1" name the same stage
                said = f"line {line} has the key {key.value:.80} again, after line {lines[key.value]}; keep one of them"
                raise ConstructorError(None, None, said, None)
            lines[key.value] = line
        return node
