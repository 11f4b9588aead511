"""A fuzzer over everything that the program reads: inputs that are damaged at random, and its own finished folders.

A trial is a kind and a seed, and the two give the same trial always. `mutations` damages bytes and files, `worlds`
makes what is whole and knows what is true of it, `verdicts` judges what came out, and the other files hold the kinds.
"""
