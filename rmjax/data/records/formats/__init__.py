"""Record formats: a parser per published layout, their table, detection, and the iteration over sources."""

from rmjax.data.records.formats.table import (
    DETECTION_RECORDS,
    FORMATS,
    Format,
    Item,
    detect_format,
    find_format,
    parse_sources,
)

__all__ = ["DETECTION_RECORDS", "FORMATS", "Format", "Item", "detect_format", "find_format", "parse_sources"]
