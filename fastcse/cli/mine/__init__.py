"""`fastcse mine`: hard negatives from text files to a text file, in a run that can be killed and continued.

`options` (what may be asked), `text` (files in, rows out), `workspace` (what a run leaves on the disk), `job` (the
whole) and `command` (the command line).
"""
