"""What every room stands on: errors, settings, files, text for people. Knows no head and no model.

Read `errors` first: a mistake of the caller is a `SparksError`, one line that says what is wrong,
the value and the way out. `config` holds every setting of a snapshot with its default and its help;
callback, command line and YAML read them there. `files` writes whole files or none.
"""
