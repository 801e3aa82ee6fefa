import sys

try:
    from .cli import main
    code = main()
except KeyboardInterrupt:  # while modules were loading
    code = 130
sys.exit(code)
