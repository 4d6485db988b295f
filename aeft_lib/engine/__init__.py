"""How any network is trained: batches, steps, the loop, schedules, checkpoints, ranks, devices.

It knows torch alone: no data set, no loss, no stage.  Every room may import it.
"""
