"""How a row scales: loss curves and speed on 1, 2 and 4 processes."""
