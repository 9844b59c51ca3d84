"""Preference data: from records to comparisons, prefix trees and packed rows.

`schema` holds the data types of all steps; the sub-packages follow the order of the steps: records, tokens, packing.
"""
