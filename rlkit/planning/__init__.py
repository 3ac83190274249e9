"""Reference planners: which searches does a question need? Asked once, before training (search_p1 §2.6, §4.4, §7).

`direct.py` asks a language model that is shown the answer, `vote.py` merges what correct rollouts searched,
`validation.py` refuses a plan that would spoil a reward, `planner.py` plans many tasks into a file that it can resume.
"""
