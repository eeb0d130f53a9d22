"""What an autoscaler does to a service under a given load, played in virtual time. Nothing here reads a clock or a network.

`python -m millrace_operator.simulate` is the command. `traffic` says when requests arrive, `scene` what they meet, `laws` who decides on
the replicas, `play` lets it happen, and `figures`, `table` and `picture` tell it.
"""
