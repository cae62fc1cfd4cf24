"""Write the JSON Schema of recipes: ``python -m weightspace.merging.recipe > recipe.schema.json``."""

import sys

from weightspace.merging.recipe.json_schema import schema_text

if __name__ == "__main__":
    sys.stdout.write(schema_text())
