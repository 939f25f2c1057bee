"""The rows, in the order in which they run."""

from rows import cancel, damaged, faults, fuzz, hostile, kill, memory, mutant, order, power, protocol, schedules, slow, stop

MODULES = (kill, power, faults, order, damaged, memory, slow, protocol, cancel, fuzz, hostile, stop, schedules, mutant)
ROWS = [module.ROW for module in MODULES]
