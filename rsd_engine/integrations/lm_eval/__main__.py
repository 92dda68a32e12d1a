"""The command line of lm-evaluation-harness, with the model `rsd`, for versions without plugins.

python -m rsd_engine.integrations.lm_eval --model rsd --model_args draft=D,target=T,prm=P --tasks X
"""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from rsd_engine.integrations.lm_eval import ModelArgumentError


def main() -> None:
    """Runs the harness; a wrong argument of the model is one line on stderr and exit code 2."""
    try:
        cli_evaluate()
    except ModelArgumentError as error:
        print(f"--model_args: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
