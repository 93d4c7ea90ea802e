"""How a row scales: loss curves on 1, 2 and 4 processes."""
