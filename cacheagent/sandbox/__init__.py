"""Programs that read what strangers made: how they are shut in, and which way works here.

They run in bubblewrap: without network, without capabilities, without the processes of the host,
and of its files they see the system's programs and those that the caller names. A daemon whose
unit may not make namespaces has a unit of its own run them in bubblewrap; where neither can be,
limits of resources are all there is.
"""

from cacheagent.sandbox.bubblewrap import Files
from cacheagent.sandbox.sandbox import Sandbox, find_sandbox

__all__ = ["Files", "Sandbox", "find_sandbox"]
