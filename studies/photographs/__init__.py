"""How good the default of `predict` is on photographs: `accuracy`, `sheet` and `times`, one command each.

No photograph is part of the repository; every command takes a folder of one's own.
"""
