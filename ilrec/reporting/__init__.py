"""The report of a set of runs: a picture, and a page in HTML with the picture, the table, the
protocol and the settings. tools/report.py is the command line.

Reading order: contents.py (what is read of runs and rankings), panels.py (which curves there are),
picture.py (how they are drawn), page.py and page.html (the page, in one file).
"""
