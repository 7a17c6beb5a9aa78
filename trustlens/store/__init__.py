"""The files of a run: layout, writer and reader. Only pyarrow below it."""
