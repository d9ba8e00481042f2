"""What the crowd likes: SASRec, a light collaborative filter, and the token rewards made of it.

Reading order: sasrec.py (the model), sasrec_training.py, token_reward.py (from item probabilities
to rewards of tokens), collator.py (adds them to a batch); popularity.py is the baseline.

A sample with the three items of ilrec/items/__init__.py. A user had item 2, and the target is item
1, <a_0><b_2>. The filter was trained on six users who had 2 then 0, three who had 2 then 1, and one
who had 0 then 2:

    p_cf of items 0, 1, 2    0.567  0.433  0.000    (item 2 was seen: no candidate)
    first token              <a_0> 1.000   <a_3> 0.000
    after <a_0>              <b_1> 0.567   <b_2> 0.433
    after <a_0><b_2>         end   1.000

So <b_1>, a wrong token here, is rewarded more than <b_2>: many users like its item.
"""
