"""What the experiment says about the hyperparameters themselves: from random search's trials alone.

Trials of an adaptive method crowd where it went, and say more of the method than of the space; a
grid's trials lie on a few levels. Random search's are independent draws from the whole space, so
shares and means over them are estimates of the space's own.
"""
