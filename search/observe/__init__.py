"""What a machine watches: metrics, and finished trials written where others look at them."""
