"""An example of a record format of one's own: support tickets, and drafts of answers with votes."""


def parse(record):
    """Returns a record of the format `kwise`."""
    drafts = record["drafts"]
    if not drafts:
        raise ValueError("the ticket has no draft")
    found = {"prompt": record["ticket"], "responses": [draft["text"] for draft in drafts]}
    if all("votes" in draft for draft in drafts):  # labels may be missing when records are only scored
        found["scores"] = [draft["votes"] for draft in drafts]
    return found
