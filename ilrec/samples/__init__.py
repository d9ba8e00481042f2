"""What the model reads: histories and targets as token ids, and batches of them.

Reading order: task.py puts all of this together for one data directory. prompts.py is the wording,
with vocabulary.py (a token for each code), text_tokens.py and item_tokens.py (text as ids, and
their cache). builder.py joins the ids; prefixes.py and windows.py say which samples there are.
batches.py groups samples by a token budget, and collators.py makes tensors of them.

A sample of Amazon Instruments with short texts around it. The history of user 0 is items 0 and 1,
the target is item 2 (tokens of a small Llama 3 tokenizer that knows the codes):

    text        Bought:<a_137><b_112><c_79><d_200>,<a_24><b_225><c_111><d_125> Next:
                <a_216><b_19><c_185><d_96><|end_of_text|>
    input_ids   0 35 80 86 72 73 85 27 408 594 817 1194 13 337 707 849 1119 222 47 70 89 85 27
                459 501 923 1090 1
    labels      -100 (23 times: the prompt) 459 501 923 1090 1
"""
