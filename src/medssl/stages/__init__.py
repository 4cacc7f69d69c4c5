"""The stages in pipeline order: artifacts in, artifacts out.

Whatever process imports a stage ends with the exit code of its reason (`medssl.exit_codes`).
"""

from medssl.exit_codes import install_excepthook

install_excepthook()
