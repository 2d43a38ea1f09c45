"""What a trial is: images, models, losses, optimizers, and the engine that trains them.

Imports nothing of the project. `objectives.base` is free of torch; every other module may use it.
"""
