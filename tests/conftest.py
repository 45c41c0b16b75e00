"""What holds for all tests: how long a case takes is no property of the code, least of all on a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("coma", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("coma")
