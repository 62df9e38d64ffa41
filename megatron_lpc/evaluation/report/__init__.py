"""A trained codebook as a page to look at: one HTML file that opens offline, and its numbers as JSON.

`scored_pairs` needs the model and its process groups; everything after it is a pure function of what it scored, until
`page` writes the files. `findings` puts the parts together.
"""
