"""Faults for whole runs: plant them, start the run again, compare with a twin that nothing happened to.

    patches.py      what is planted inside a rank, and the record of what the rank consumed
    rank.py         one rank with the patches; command.py: the command, whose ranks have them; nursery.py: quick ranks
    job.py          start a run, wait for a moment in it, kill, signal, wait for its end
    damage.py       harm to the files of a run between two starts
    verdict.py      samples lost and repeated, and what differs from the twin

The product has no hooks for this: everything goes through commands, signals, files, and patches of this package.
"""
