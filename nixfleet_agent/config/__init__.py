"""The effective configuration: one frozen object, read once in ``main`` and handed down."""

from nixfleet_agent.config.model import ActivationConfig, Config, LoggingConfig, MetricsConfig, TuningConfig

__all__ = ["ActivationConfig", "Config", "LoggingConfig", "MetricsConfig", "TuningConfig"]
