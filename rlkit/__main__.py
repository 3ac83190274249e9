"""`python -m rlkit RECIPE key=value ...`: also what the first line of a recipe calls."""

import sys

from rlkit.launch.cli import main

# Ray and torch start processes that import the main module again; those must not run the recipe a second time
if __name__ == "__main__":
    sys.exit(main())
