"""Texts of refusals: words of a command, what its only line says, and the files that it finds.

Commands have what their rows have in common. `{tmp}` is a folder with the files of the row, `{new}`
one in it that does not exist, `{input}` a folder of 18 pictures, and `{dataset}` a finished dataset
of them. The name of a folder ends with a slash.
"""

Row = tuple[str, str] | tuple[str, str, dict[str, str | bytes]]
Rows = dict[str, list[Row]]
