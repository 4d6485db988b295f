"""How networks are trained, whatever they are: batches, steps, the loop, schedules, checkpoints,
ranks, devices.

It knows torch alone: no data set, no loss, no stage.  Everybody may import it.
"""
