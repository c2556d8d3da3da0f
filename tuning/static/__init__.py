"""Static analysis: compiles launches for GPUs that are not there and reads what the machine code costs.

``python -m tuning.static`` is its command. A ``requests`` launch goes through ``compiling``, the machine code through
``nvidia`` or ``amd`` and ``code``, and what they find into a ``report``; ``recorded`` holds those of all variants.
"""
