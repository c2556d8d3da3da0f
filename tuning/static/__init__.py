"""Static analysis: compiles launches for GPUs that are not there and reads what the machine code costs.

targets     the architectures that can be compiled for
describe    a case as tensors without memory
compiling   a Launch and a target to machine code, specialised as Triton's JIT would
nvidia, amd instructions and resources out of that machine code
recorded    StaticReport, and the file that holds the whole table
report      a compiled launch as a StaticReport, and what it claims about itself
requests    what to compile, by name, and the answers
again       which recorded reports still hold, so that only the others are compiled
defaults    what runs untuned on the GPUs of the datasheets, and whether it fits them
table       reports for a terminal
worker      runs all of it in a process of its own
farm        compiles launches in several processes that may die (server is what these run)
occupancy   how many blocks a unit holds
work        what the steps of a candidate have to do, before they are compiled
prior       guessed machine code of what was not compiled
model       predicted seconds on a SKU, and the constants that are assumed
rounds      compiles those of many cases within a time
candidates  those of one op and case on one SKU, and which is chosen
"""
