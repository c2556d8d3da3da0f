"""The autotuner: finds the fastest correct kernel for every op and case on a device, and publishes it in a registry.

A run is a pipeline, and each stage is a package. A stage imports only from stages below it in this list.

ui       the commands, the display of a running tuner, event streams, the summary at the end
doctor   checks of the installation, the machine and its registries
run      one run from options to a published registry, and the study that closes a whole run
decide   one case: search order, race, verdict
predict  kernels for a GPU that is not there: machine code, time model, the choice
publish  registries shown, compared and merged
replay   search strategies judged on recorded measurements
workers  processes that run or compile candidates and may be killed, and the messages between them and the tuner
measure  correctness, timing, noise, the device's conditions, the rounds of a race and their statistics
plan     what a run tries: options, jobs, budgets, the schedule
search   the space of a case and the strategies that walk it
record   the journal, its records, and their export to other formats
static   compiling for GPUs that are not there, and reading the machine code
"""
