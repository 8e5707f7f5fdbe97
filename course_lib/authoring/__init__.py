"""From solutions to exercises, student edition and book."""

import sys

# jsonschema, which every reader of notebooks imports, takes this package if it is there, to know international
# addresses by. No notebook has any, and importing it compiles some forty grammars: a second of every process.
sys.modules.setdefault("rfc3987_syntax", None)
