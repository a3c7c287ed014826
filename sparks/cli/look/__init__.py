"""Commands that show runs; none needs torch."""
