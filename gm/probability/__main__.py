"""`python -m gm.probability`: the lecture's questions with their answers."""

from gm.probability import lecture

if __name__ == "__main__":
  print("\n".join(lecture.lines()))
