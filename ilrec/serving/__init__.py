"""From a trained model to recommendations.

Reading order: trained.py (a model with its items and its samples), catalogue.py (item ids to
numbers, and parts of the catalogue), recommender.py (the Python API), histories.py (whose
recommendations are made), lists.py (files of recommendations), job.py (all users to a file, in
shards that are shared among the processes and not made twice).

    r = Recommender.load("runs/merged")
    r.recommend([["B07", "B02"]], top_k=2)
    # [[Recommendation(rank=1, item_id='B11', title='Strings', score=-1.7, probability=0.6), ...]]
"""
