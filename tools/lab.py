"""What `make lab` runs in each kernel: charts draw from a bundled script, so that they need no network."""
import altair

altair.renderers.enable("jupyter", offline=True)
