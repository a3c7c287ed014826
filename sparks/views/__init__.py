"""How a timeline looks: in the terminal, in one HTML file, as figures, in trackers, live.

    words -> text/, report/, figures/, trackers/, live/

No view decides anything: the numbers are the timeline's, and `words` says them, once. No torch.
`report/page/` holds the scripts and styles of the page. Read `words` first, then `text/timeline`.
"""
