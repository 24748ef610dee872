"""Bad input: what is typed and what lies there, and the one line that answers it.

Each module is a table of commands and lines. Commands run in this process, in a folder of the module's own, which its
fixture `sandbox` fills; besides the line, it is checked that nothing in that folder has changed.
"""
