#include "base/json_fields.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace saccade {
namespace {

TEST(JsonFields, MissingAndNullTakeTheDefault) {
  const Json json = {{"null", nullptr}, {"n", 3}};
  const JsonFields fields(json, "f.json");
  EXPECT_EQ(fields.integer("n", 7, 0, 9), 3);
  EXPECT_EQ(fields.integer("null", 7, 0, 9), 7);
  EXPECT_EQ(fields.number("gone", 0.5, 0, 9), 0.5);
  EXPECT_TRUE(fields.boolean("gone", true));
  EXPECT_EQ(fields.text("gone", "x"), "x");
  EXPECT_TRUE(fields.integers("gone", 0, 9).empty());
  EXPECT_EQ(fields.find("null"), nullptr);
  EXPECT_TRUE(fields.contains("null"));
  EXPECT_FALSE(fields.contains("gone"));
  EXPECT_EQ(fields.object("gone").integer("n", 5, 0, 9), 5);
}

TEST(JsonFields, ErrorsNameFileKeyExpectedAndFound) {
  const Json json = {{"a", {{"b", {{"c", "text"}}}}}};
  const JsonFields inner = JsonFields(json, "f.json").object("a").object("b");
  try {
    inner.integer("c", 0, 1, 2);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "f.json: a.b.c: expected an integer from 1 to 2, found \"text\"");
  }
  try {
    inner.object("c");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "f.json: a.b.c: expected a JSON object, found \"text\"");
  }
}

TEST(JsonFields, LongAndForeignValuesAreCutAndEscaped) {
  EXPECT_EQ(json_excerpt(std::string(200, 'x')), "\"" + std::string(79, 'x') + "...");
  EXPECT_EQ(json_excerpt("\n\xc3\xa9"), "\"\\n\\u00e9\"");
}

}  // namespace
}  // namespace saccade
