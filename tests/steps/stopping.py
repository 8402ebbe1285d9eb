"""Source of a function for the processes that tests stop: a moment is named by a function that has just returned."""

STOP_AT = """
import time

def stop_at(owner, name, count):
    real, calls = getattr(owner, name), 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        answer = real(*args, **kwargs)
        calls += 1
        if calls == count:
            print("HERE", flush=True)
            time.sleep(120)
        return answer

    setattr(owner, name, wrapped)
"""
