"""Write the table of merge methods from the declarations in this package: ``python -m weightspace.merging.methods``."""

from weightspace.merging.methods._declaration import declared_methods
from weightspace.merging.methods._table import TABLE, table_of

if __name__ == "__main__":
    TABLE.write_text(table_of(declared_methods()), encoding="utf-8")
