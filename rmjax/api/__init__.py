"""The Python API: the functions that the programs call, for notebooks and scripts.

Everything here works in notebooks, in threads and while an event loop is running, and prints nothing unless asked.
"""

from rmjax.api.calibration import calibrate as calibrate
from rmjax.api.description import describe as describe
from rmjax.api.duplicates import find_duplicates as find_duplicates
from rmjax.api.explanation import Explanation as Explanation
from rmjax.api.model import Model as Model
from rmjax.api.model import evaluate as evaluate
from rmjax.api.model import load as load
from rmjax.api.planning import plan as plan
from rmjax.api.runs import Run as Run
from rmjax.api.runs import train as train
from rmjax.api.server import serve as serve
from rmjax.data.report import Description as Description
from rmjax.training.averaging import average as average
