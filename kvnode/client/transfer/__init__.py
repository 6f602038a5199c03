"""Export and import: whole key ranges into files and back.

docs/howto/import-export.md says what is promised.
"""
