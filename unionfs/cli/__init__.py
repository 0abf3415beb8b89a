"""The `unionmount` command: one module a group of subcommands.

`__main__` decides whether the caller is a person or a mount helper, `app` joins the subcommands,
`output` prints, `given` reads which union is meant. A command prints data on standard output, as
JSON with `--json`, and one line on standard error where it fails.
"""
