"""Static analysis: compiles launches for GPUs that are not there and reads what the machine code costs.

``python -m tuning.static`` is its command.

targets        the architectures that can be compiled for
absent_device  the Device of a datasheet
describe       a case as tensors without memory
compiling      a Launch and a target to machine code, specialised as Triton's JIT would
compile_key    which launches share machine code
nvidia, amd    instructions and resources out of that machine code
code           the main loop among the instructions, and their mix
recorded       StaticReport, and the file that holds the whole table
report         a compiled launch as a StaticReport, and what it claims about itself
requests       what to compile, by name, and the answers
again          which recorded reports still hold, so that only the others are compiled
kernel_digest  the digest of a kernel's code
defaults       what runs untuned on the GPUs of the datasheets, and whether it fits their shared memory
table          reports for a terminal
worker         runs all of it in a process of its own
"""
