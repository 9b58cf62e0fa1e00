"""What the compilers of GPUs and TPUs say of a detector, without such a chip.

`targets` has the chips, `programs` what is compiled, `hlo` reads a compiled program,
`count` and `traffic` count what it does. `scripts/compile_for.py` is the command.
"""
