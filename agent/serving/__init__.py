"""What answers programs: an OpenAI-compatible HTTP API over one base and its adapters.

It stands beside ``service``, above ``llm``: it runs models, and knows nothing of devices, communities or homes. Which
adapters there are is told to it by whoever starts it (:class:`agent.serving.catalogue.Catalogue`), and may change while
it runs.

From the outside in: ``server`` owns the socket and the process's end; ``guard`` turns away who may not ask; ``app`` has
the routes; ``asking`` reads requests and ``replies`` writes answers, both pure; ``engine`` runs the model on one thread
of its own, and ``loaded_adapters`` keeps adapters at hand.
"""
